"""The training arguments of stage 1."""

from dataclasses import dataclass, field
from typing import Literal

from .embedding_config import EmbeddingConfig


@dataclass
class DistillationConfig(EmbeddingConfig):
    """Arguments of [`DistillationTrainer`] (UniME, arXiv 2504.17432, §3.2).

    The paper does not state its temperatures. Both default to 0.1. They are equal, so that the student's optimum is
    the teacher's own similarities. They are high enough that a text's similarity with itself, always 1, does not take
    the whole row: with all-MiniLM-L6-v2 and 512 texts of the OpenMoji data, its share of the median row is 99.99% at
    0.02, which leaves nothing to learn, 93% at 0.05, 47% at 0.1 and 6% at 0.2.

    Args:
        student_temperature (`float`, *optional*, defaults to `0.1`): Softmax temperature of the student's cosines
            (tau in the paper). 0.05 to 0.2 are sensible.
        teacher_temperature (`float`, *optional*, defaults to `0.1`): Softmax temperature of the teacher's cosines.
            0.05 to 0.2 are sensible.
        kl_direction (`str`, *optional*, defaults to `"teacher_student"`): KL(teacher || student), or KL(student ||
            teacher) for `"student_teacher"`.
    """

    student_temperature: float = field(default=0.1, metadata={"help": "Softmax temperature of the student's cosines."})
    teacher_temperature: float = field(default=0.1, metadata={"help": "Softmax temperature of the teacher's cosines."})
    kl_direction: Literal["teacher_student", "student_teacher"] = field(
        default="teacher_student", metadata={"help": "KL(teacher || student), or KL(student || teacher)."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("student_temperature", "teacher_temperature"):
            if vars(self)[name] <= 0:
                raise ValueError(f"{name} must be positive, got {vars(self)[name]}")
        if self.kl_direction not in ("teacher_student", "student_teacher"):
            raise ValueError(f"kl_direction must be 'teacher_student' or 'student_teacher', got '{self.kl_direction}'")
