"""The benchmarks by name, and where their files are."""

from collections.abc import Callable
from dataclasses import dataclass, field

from . import captions, mmeb, openmoji, sugarcrepe
from .tasks import CompositionalTask, RetrievalTask


Tasks = tuple[list[RetrievalTask], list[CompositionalTask]]


@dataclass
class BenchmarkArguments:
    """Where the files of the benchmarks are; those of the OpenMoji world come with the package."""

    split: str = field(default="test", metadata={"help": "openmoji: validation or test."})
    size: int = field(default=1000, metadata={"help": "openmoji: candidates of the scene tasks; the others follow."})
    seed: int = field(default=0, metadata={"help": "openmoji: seed of its questions."})
    mmeb_source: str = field(default="TIGER-Lab/MMEB-eval", metadata={"help": "mmeb: Hub id or folder."})
    mmeb_images: str = field(default="MMEB-eval", metadata={"help": "mmeb: where its images.zip was unpacked."})
    subsets: list[str] | None = field(default=None, metadata={"help": "mmeb: some of its 36 sets; all if not given."})
    flickr30k_source: str = field(default="royokong/flickr30k_test", metadata={"help": "flickr30k: Hub id or folder."})
    coco_source: str = field(default="royokong/coco_test", metadata={"help": "coco: Hub id or folder."})
    sharegpt4v_captions: str = field(
        default="share-captioner_coco_lcs_sam_1246k_1107.json", metadata={"help": "sharegpt4v: its JSON file."}
    )
    sharegpt4v_images: str = field(default="sharegpt4v", metadata={"help": "sharegpt4v: folder of coco, llava, sam."})
    urban1k_folder: str = field(default="Urban1k", metadata={"help": "urban1k: folder of image and caption."})
    sugarcrepe_folder: str = field(default="sugar-crepe/data", metadata={"help": "sugarcrepe: folder of its files."})
    sugarcrepe_images: str = field(default="val2017", metadata={"help": "sugarcrepe: COCO's val2017."})


# name -> (what opens it, who made its pictures and under which licence)
BENCHMARKS: dict[str, tuple[Callable[[BenchmarkArguments], Tasks], str]] = {
    "openmoji": (
        lambda args: openmoji.tasks(args.split, args.size, args.seed),
        "Pictures: OpenMoji (openmoji.org), CC BY-SA 4.0.",
    ),
    "mmeb": (
        lambda args: (mmeb.tasks(args.mmeb_source, args.mmeb_images, args.subsets), []),
        "Pictures: the sets of MMEB, each under its own licence.",
    ),
    "flickr30k": (
        lambda args: (captions.flickr30k(args.flickr30k_source), []),
        "Pictures: Flickr30K, for research only.",
    ),
    "coco": (lambda args: (captions.coco(args.coco_source), []), "Pictures: COCO, under the licences of Flickr."),
    "sharegpt4v": (
        lambda args: (captions.sharegpt4v(args.sharegpt4v_captions, args.sharegpt4v_images), []),
        "Pictures: those of ShareGPT4V's sources, each under its own licence.",
    ),
    "urban1k": (
        lambda args: (captions.urban1k(args.urban1k_folder), []),
        "Pictures: Urban1K, from Visual Genome, CC BY 4.0.",
    ),
    "sugarcrepe": (
        lambda args: ([], sugarcrepe.tasks(args.sugarcrepe_folder, args.sugarcrepe_images)),
        "Pictures: COCO, under the licences of Flickr.",
    ),
}


def open_benchmark(name: str, args: BenchmarkArguments) -> Tasks:
    """Open the tasks of a benchmark.

    Raises:
        ValueError: There is no such benchmark, or its files are not as published.
    """
    if name not in BENCHMARKS:
        raise ValueError(f"there is no benchmark {name!r}: choose from {', '.join(BENCHMARKS)}")
    return BENCHMARKS[name][0](args)
