"""What a recommendation says, in English and in Chinese."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Wording:
    """The same in both languages."""

    en: str
    zh: str

    def __add__(self, other: "Wording") -> "Wording":
        return Wording(f"{self.en} {other.en}".strip(), f"{self.zh}{other.zh}")


def words_of(
    case: str,
    *,
    step: int = 0,
    best: int = 0,
    equivalent: Sequence[int] = (),
    worse: Sequence[int] = (),
    base: bool | None = None,
    behind: tuple[int, float] = (0, 0.0),
) -> Wording:
    """Says what was found. base: whether the checkpoint is better than the base model beyond chance; None: unknown.
    behind: the next best checkpoint, and how much lower its total is."""
    if case == "nothing":
        return Wording("There is nothing to compare checkpoints by.", "没有可用于比较检查点的评分。")
    if case == "all_worse":
        return Wording(
            "Every checkpoint is worse than the base model beyond chance; none is recommended. Keep the base model, "
            "and look at the data, the learning rate and the number of epochs.",
            "所有检查点都显著差于基础模型，不推荐任何检查点。请保留基础模型，并检查数据、学习率和训练轮数。",
        )
    return _choice(case, step, best, equivalent, behind) + _against_base(base) + _guard(worse)


def _choice(case: str, step: int, best: int, equivalent: Sequence[int], behind: tuple[int, float]) -> Wording:
    if case == "only":
        return Wording(
            f"Checkpoint {step} is the only one that can be recommended.", f"检查点 {step} 是唯一可推荐的检查点。"
        )
    if case == "apart":
        following, difference = behind
        return Wording(
            f"Checkpoint {step} is better than the others beyond chance; the total of the next best, checkpoint "
            f"{following}, is {difference:.2g} lower.",
            f"检查点 {step} 显著优于其他检查点；其次是检查点 {following}，综合得分低 {difference:.2g}。",
        )
    others = ", ".join(map(str, sorted({best, *equivalent})))
    return Wording(
        f"Checkpoints {others} can't be told apart on these samples (checkpoint {best} has the highest total); "
        f"checkpoint {step}, the earliest of them, is recommended.",
        f"检查点 {others} 在这些样本上无法区分（检查点 {best} 的综合得分最高）；推荐其中最早的检查点 {step}。",
    )


def _guard(worse: Sequence[int]) -> Wording:
    if not worse:
        return Wording("", "")
    listed = ", ".join(map(str, sorted(worse)))
    return Wording(f"Worse than the base model beyond chance: {listed}.", f"显著差于基础模型的检查点：{listed}。")


def _against_base(better: bool | None) -> Wording:
    if better is None:
        return Wording("", "")
    if better:
        return Wording("It is better than the base model beyond chance.", "它显著优于基础模型。")
    return Wording("It can't be told apart from the base model.", "它与基础模型无法区分。")
