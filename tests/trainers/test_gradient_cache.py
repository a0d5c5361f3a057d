from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_architectures import tiny_architecture
from torch import Tensor
from transformers import ProcessorMixin

from unime import UniMEModel, micro_batches, processor_from_backbone
from unime.trainers import cached_loss, contrastive_loss
from unime.trainers.gradient_cache import GraphCacheBudget, RandomState


KINDS = ["text", "image", "mixed"]


def make_items(kind: str, make_image: Callable) -> list[Any]:
    texts = [f"text {i}" + " longer" * i for i in range(8)]
    images = [make_image(i) for i in range(8)]
    both = [{"text": text, "image": image} for text, image in zip(texts, images, strict=True)]
    return {"text": texts, "image": images, "mixed": texts[:3] + images[:3] + both[:2]}[kind]


def loss_of(embeddings: Tensor) -> Tensor:
    """Contrast the first half of the items with the second."""
    half = len(embeddings) // 2
    excluded = torch.zeros(half, half, dtype=torch.bool)
    queries, candidates = embeddings.split(half)
    return contrastive_loss(queries, candidates, torch.arange(half), excluded, temperature=0.5, num_hard_negatives=2)[
        0
    ]


def gradients(
    model: UniMEModel, batches: list[dict[str, Tensor]], cached: bool, scale: float = 1.0, gigabytes: float = 0.0
) -> dict[str, Any]:
    def embed(tensors: dict[str, Tensor]) -> Tensor:
        return model(**tensors).embeddings

    torch.manual_seed(7)
    model.zero_grad()
    if cached:
        loss = cached_loss(embed, batches, loss_of, GraphCacheBudget(gigabytes, model))
    else:
        loss = loss_of(torch.cat([embed(tensors) for tensors in batches]))
    (scale * loss).backward()
    return {"loss": loss.detach(), "random": torch.rand(3)} | {
        name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None
    }


@pytest.mark.parametrize("micro_batch_tokens", [1, 60, 200])
@pytest.mark.parametrize("kind", KINDS)
def test_cached_gradients_with_dropout_equal_those_of_the_whole_batch(
    kind: str, micro_batch_tokens: int, make_model: Callable, processor: ProcessorMixin, make_image: Callable
):
    model = make_model(dropout=0.3).train()
    batches = [tensors for _, tensors in micro_batches(processor, make_items(kind, make_image), micro_batch_tokens)]
    assert len(batches) > 1
    cached, plain = gradients(model, batches, cached=True), gradients(model, batches, cached=False)
    assert len(cached) > 10
    torch.testing.assert_close(cached, plain, atol=1e-6, rtol=0)


@pytest.mark.parametrize("micro_batch_tokens", [1, 250])
def test_micro_batches_give_the_gradients_of_the_whole_batch_with_batch_normalization(
    micro_batch_tokens: int, tmp_path: Path, make_image: Callable
):
    torch.manual_seed(0)
    native, processor = tiny_architecture("fast_vlm")  # its tower is a ResNet
    native.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    model, processor = UniMEModel.from_backbone(str(tmp_path)), processor_from_backbone(str(tmp_path))
    statistics = {name: buffer.clone() for name, buffer in model.named_buffers()}
    assert any("running_mean" in name for name in statistics)

    def of_budget(tokens: int) -> tuple[int, dict[str, Any]]:
        batches = micro_batches(processor, make_items("mixed", make_image), tokens)
        order = [index for indices, _ in batches for index in indices]
        model.zero_grad()
        embeddings = torch.cat([model(**tensors).embeddings for _, tensors in batches])
        loss = loss_of(torch.empty_like(embeddings).index_copy(0, torch.tensor(order), embeddings))
        loss.backward()
        return len(batches), {"loss": loss.detach()} | {
            name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None
        }

    model.train()
    assert model.training and model.backbone.language_model.training
    count, parts = of_budget(micro_batch_tokens)
    fewest, whole = of_budget(10**6)
    assert fewest == 2 < count  # texts and images
    scale = max(gradient.abs().max().item() for gradient in whole.values())
    torch.testing.assert_close(parts, whole, atol=1e-5 * max(scale, 1), rtol=0)
    torch.testing.assert_close(dict(model.named_buffers()), statistics, atol=0, rtol=0)
    assert not model.eval().training


def graph_gigabytes(model: UniMEModel, tensors: dict[str, Tensor]) -> float:
    """Return the gigabytes that the graph of a micro-batch holds."""
    budget = GraphCacheBudget(1, model)
    with budget.counting(tensors):
        output = model(**tensors).embeddings
    assert output.requires_grad  # kept until here, and its graph with it
    return 1 - budget.bytes_left / 1e9


@pytest.mark.parametrize("budget", ["none", "one byte", "a graph and a half", "all but one", "plenty"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_budget_gives_the_same_gradients(
    kind: str, budget: str, make_model: Callable, processor: ProcessorMixin, make_image: Callable
):
    model = make_model(dropout=0.3).train()
    batches = [tensors for _, tensors in micro_batches(processor, make_items(kind, make_image), 60)]
    num_batches = len(batches)
    assert num_batches > 3
    sizes = [graph_gigabytes(model, tensors) for tensors in batches]
    # The budget in gigabytes and the number of graphs kept; the last one may exceed the budget.
    gigabytes, kept = {
        "none": (0, 1),
        "one byte": (1e-9, 1),
        "a graph and a half": (sizes[0] + sizes[1] / 2, 2),
        "all but one": (sum(sizes[:-1]) - 1e-9, num_batches - 1),
        "plenty": (1, num_batches),
    }[budget]
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    cached = gradients(model, batches, cached=True, gigabytes=gigabytes)
    assert len(calls) == 2 * num_batches - kept
    torch.testing.assert_close(cached, gradients(model, batches, cached=False), atol=1e-6, rtol=0)


@pytest.mark.parametrize("gigabytes", [0, 1e-9, 1])
def test_only_the_backward_pass_of_the_last_micro_batch_is_marked_as_last(
    gigabytes: float, make_model: Callable, processor: ProcessorMixin, make_image: Callable
):
    model = make_model()
    batches = [tensors for _, tensors in micro_batches(processor, make_items("mixed", make_image), 60)]
    last_flags = []

    def backward(embeddings: Tensor, gradient: Tensor, last: bool) -> None:
        last_flags.append(last)
        embeddings.backward(gradient)

    budget = GraphCacheBudget(gigabytes, model)
    cached_loss(lambda tensors: model(**tensors).embeddings, batches, loss_of, budget, backward).backward()
    assert last_flags == [False] * (len(batches) - 1) + [True]


def test_a_single_micro_batch_is_embedded_once(make_model: Callable, processor: ProcessorMixin, make_image: Callable):
    model = make_model(dropout=0.3).train()
    ((_, tensors),) = micro_batches(processor, make_items("text", make_image), 10**6)
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    cached, plain = gradients(model, [tensors], cached=True), gradients(model, [tensors], cached=False)
    torch.testing.assert_close(cached, plain, atol=0, rtol=0)
    assert len(calls) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_do_not_depend_on_the_micro_batch_size(
    kind: str, make_model: Callable, processor: ProcessorMixin, make_image: Callable
):
    model = make_model().train()
    items = make_items(kind, make_image)

    def gradients_of(micro_batch_tokens: int) -> dict[str, Any]:
        batches = micro_batches(processor, items, micro_batch_tokens)
        order = torch.tensor([index for indices, _ in batches for index in indices])
        model.zero_grad()
        loss = cached_loss(
            lambda tensors: model(**tensors).embeddings,
            [tensors for _, tensors in batches],
            lambda embeddings: loss_of(embeddings[torch.argsort(order)]),
        )
        loss.backward()
        return {"loss": loss.detach()} | {name: parameter.grad for name, parameter in model.named_parameters()}

    whole = gradients_of(10**6)
    for micro_batch_tokens in (1, 60, 200):
        torch.testing.assert_close(gradients_of(micro_batch_tokens), whole, atol=1e-6, rtol=0)


def test_dropout_changes_the_loss_in_these_tests(
    make_model: Callable, processor: ProcessorMixin, make_image: Callable
):
    batches = [tensors for _, tensors in micro_batches(processor, make_items("mixed", make_image), 60)]
    with_dropout = gradients(make_model(dropout=0.3).train(), batches, cached=True)
    without = gradients(make_model().train(), batches, cached=True)
    assert (with_dropout["loss"] - without["loss"]).abs() > 1e-4


def test_a_scaled_loss_scales_the_gradients(make_model: Callable, processor: ProcessorMixin, make_image: Callable):
    model = make_model(dropout=0.3).train()
    batches = [tensors for _, tensors in micro_batches(processor, make_items("mixed", make_image), 60)]
    scaled, plain = gradients(model, batches, cached=True, scale=8.0), gradients(model, batches, cached=True)
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(scaled[name], 8 * plain[name])


@pytest.mark.parametrize("gigabytes", [0, 1e-4, 1])
@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_does_not_change_the_gradients(
    reentrant: bool, gigabytes: float, make_model: Callable, processor: ProcessorMixin, make_image: Callable
):
    model = make_model(dropout=0.3).train()
    batches = [tensors for _, tensors in micro_batches(processor, make_items("mixed", make_image), 60)]
    plain, whole = gradients(model, batches, cached=False), graph_gigabytes(model, batches[0])
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    assert 0 < graph_gigabytes(model, batches[0]) < whole / 2
    torch.testing.assert_close(gradients(model, batches, cached=True, gigabytes=gigabytes), plain, atol=1e-6, rtol=0)


@pytest.mark.parametrize("gigabytes", [0, 1e-9, 1])
@pytest.mark.parametrize("backward_inside", [True, False])
def test_autocast_applies_to_the_second_pass_too(
    backward_inside: bool, gigabytes: float, make_model: Callable, processor: ProcessorMixin, make_image: Callable
):
    model = make_model(dropout=0.3).train()
    batches = [tensors for _, tensors in micro_batches(processor, make_items("mixed", make_image), 60)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        plain = gradients(model, batches, cached=False)

    torch.manual_seed(7)
    model.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        budget = GraphCacheBudget(gigabytes, model)
        loss = cached_loss(lambda tensors: model(**tensors).embeddings, batches, loss_of, budget)
        if backward_inside:
            loss.backward()
    if not backward_inside:
        loss.backward()
    assert torch.equal(loss, plain["loss"])
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            # Plain autograd adds up the gradients of a weight in bfloat16, the cache in float32.
            torch.testing.assert_close(parameter.grad, plain[name], atol=2e-2, rtol=2e-2)
    assert plain.keys() - {"loss", "random"} == {
        n for n, weight in model.named_parameters() if weight.grad is not None
    }


def test_without_gradients_only_the_loss_is_computed(
    make_model: Callable, processor: ProcessorMixin, make_image: Callable
):
    model = make_model().eval()
    batches = [tensors for _, tensors in micro_batches(processor, make_items("mixed", make_image), 60)]
    with torch.no_grad():
        loss = cached_loss(lambda tensors: model(**tensors).embeddings, batches, loss_of)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, gradients(model, batches, cached=True)["loss"])


def test_a_batch_of_many_micro_batches_holds_one_graph_at_a_time():
    weight = torch.ones(3, requires_grad=True)
    alive: list[int] = []

    class Count(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, tensor: Tensor) -> Tensor:
            if tensor.requires_grad:
                alive.append(1)
            return tensor.clone()

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            alive.append(-1)
            return gradient

    batches = [{"x": torch.full((2, 3), float(i))} for i in range(4)]
    loss = cached_loss(lambda tensors: Count.apply(tensors["x"] * weight), batches, lambda e: e.square().sum())
    assert alive == [1]
    loss.backward()
    assert alive == [1, -1] * 4
    torch.testing.assert_close(weight.grad, torch.full((3,), 2.0 * 2 * (0 + 1 + 4 + 9)))


@pytest.fixture
def mps(monkeypatch: pytest.MonkeyPatch) -> torch.Generator:
    """Return the generator that `torch.mps` uses from now on, as a Mac's is not to be had everywhere."""
    generator = torch.Generator().manual_seed(1)
    monkeypatch.setattr(torch.mps, "_get_default_mps_generator", lambda: generator)
    return generator


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> list[torch.Generator]:
    """Return the generators that `torch.cuda` uses from now on for two GPUs."""
    generators = [torch.Generator().manual_seed(seed) for seed in (2, 3)]
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: generators[device.index].get_state())
    monkeypatch.setattr(
        torch.cuda, "set_rng_state", lambda state, device: generators[device.index].set_state(state) and None
    )
    return generators


def test_a_random_state_restores_the_generators_of_all_its_devices(
    mps: torch.Generator, gpus: list[torch.Generator]
) -> None:
    def draw() -> list[float]:
        return [torch.rand(()).item()] + [torch.rand((), generator=generator).item() for generator in (mps, *gpus)]

    devices = ["cpu", "meta", "mps", "cuda:0", "cuda:1", "cuda:1"]
    state = RandomState(map(torch.device, devices))
    first, second = draw(), draw()
    assert len({*first, *second}) == 8
    with state.restored():
        assert draw() == first
    third = draw()
    assert not {*third} & {*first, *second}  # as if nothing had been drawn inside the context
    state.restore()
    assert [draw(), draw(), draw()] == [first, second, third]


def test_a_model_that_draws_on_another_gpu_than_its_inputs_gets_the_gradients_of_the_whole_batch(
    gpus: list[torch.Generator],
) -> None:
    weight = torch.nn.Parameter(torch.ones(4))
    batches = [{"x": torch.randn(2, 4)} for _ in range(3)]

    def embed(tensors: dict[str, Tensor]) -> Tensor:
        return tensors["x"] * weight * torch.rand(4, generator=gpus[1])

    def loss_of(embeddings: Tensor) -> Tensor:
        return (embeddings @ embeddings.T).exp().sum()

    gpus[1].manual_seed(5)
    loss_of(torch.cat([embed(tensors) for tensors in batches])).backward()
    expected, weight.grad = weight.grad, None
    gpus[1].manual_seed(5)
    cached_loss(embed, batches, loss_of, devices=[torch.device("cuda", 1)]).backward()
    torch.testing.assert_close(weight.grad, expected)
