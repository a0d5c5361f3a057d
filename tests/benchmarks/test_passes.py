"""Tests of the benchmark of passes: its counts on a tiny model are those of a whole step and of the plan."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import passes
import pytest
from peft import LoraConfig

from unime.cli.backbones import configuration
from unime.cli.plan import image_rows
from unime.trainers.activation_checkpointing import compute_last_adapter_first
from unime.trainers.cost_model import Load, StepCost
from unime.trainers.pass_planning import PlannedPass, executed_flops


ADAPTER = LoraConfig(r=4, lora_alpha=8, lora_dropout=0.1, target_modules="all-linear")


@pytest.mark.slow  # fake tensors take a millisecond for each operation
def test_the_counts_are_those_of_a_whole_step_and_match_the_plan(tiny_model: Callable[[str], Path]):
    backbone, side = str(tiny_model("qwen2-vl")), 56
    config = passes.with_layers(configuration(backbone), 4, 2)
    tensors = passes.images(config, 2, 60, side)
    (costs,) = passes.count(config, ADAPTER, [tensors])
    model = passes.fake_model(config, ADAPTER)
    compute_last_adapter_first(model.get_base_model().backbone)
    levels, layers = passes.levels_of(4, 2), passes.ordered_layers(model)
    planned = [PlannedPass(True, 4), PlannedPass(False, 12)]
    whole, _, _ = passes.run(model, [tensors, tensors], passes.FixedPasses(layers, planned))
    assert sum(costs.executed(one, levels) for one in planned) == pytest.approx(whole, rel=1e-6)

    content, cost = image_rows(config, side), StepCost(model)
    length = 60 + content["image_tokens"]
    load = Load(2 * length, 2 * content["image_tokens"], 2 * content["patches"], length, content["tile_patches"])
    forward, backward, again = cost.forward(load), cost.backward(load), cost.recomputed_by_level(load)
    for one in (PlannedPass(kept, level) for kept in (True, False) for level in (0, 2, 6, 12)):
        predicted = executed_flops([one], [forward], [backward], [again]) / (forward + backward)
        # The last layer for last tokens only, which the plan does not know, is a quarter of this model.
        assert costs.executed(one, levels) / costs["graph"][-1] == pytest.approx(predicted, rel=0.05)
    assert costs["before"] > costs["graph"][0] > costs["graph"][1] > costs["graph"][3]
    assert costs["transient"] > 0 and (np.diff(costs["kept"]) > 0).all()


def test_operations_change_linearly_between_two_levels():
    graph = np.array([10.0, 8.0, 7.0, 6.0])
    costs, levels = passes.Counts(forward=np.array(4.0), graph=graph), passes.levels_of(4, 2)
    assert levels == [0, 4, 6, 12]
    assert costs.executed(PlannedPass(True, 2), levels) == 9
    assert costs.executed(PlannedPass(False, 9), levels) == 4 + 6.5


def test_micro_batches_hold_as_many_items_as_the_budget_allows():
    assert passes.items_of_micro_batches(10, 30.0, 100) == [3, 3, 3, 1]
    assert passes.items_of_micro_batches(2, 300.0, 100) == [1, 1]
