"""Which method the switches mean, and what weights are quantized to; they say the same in many words."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from parameterkit import messages
from parameterkit.messages import Text

FOUR_BIT = ("nf4", "fp4", "int4")
HALF = ("fp16", "bf16")
EIGHT_BIT_OPTIMIZERS = {
    "adamw_torch": "adamw_8bit",
    "adamw_torch_fused": "adamw_8bit",
    "adamw_8bit": "adamw_8bit",
    "adamw_bnb_8bit": "adamw_bnb_8bit",
    "paged_adamw_32bit": "paged_adamw_8bit",
    "paged_adamw_8bit": "paged_adamw_8bit",
    "galore_adamw": "galore_adamw_8bit",
    "galore_adamw_8bit": "galore_adamw_8bit",
}

Report = Callable[..., None]


def switched(values: Mapping[str, Any]) -> dict[str, Any]:
    """What the switches say of parameters, by their names: how a form shows them at first."""
    method, optimizer = values["method"], values["optim"]
    quantized = values["bnb_4bit_quant_type"] if method == "qlora" else "none"
    return {
        "use_lora": method != "full",
        "use_qlora": method == "qlora",
        "peft_adapter": "none" if method == "full" else "lora",
        "quantization": quantized,
        "use_4bit": quantized in FOUR_BIT,
        "use_8bit": quantized == "int8",
        "use_8bit_optimizer": EIGHT_BIT_OPTIMIZERS.get(optimizer) == optimizer,
        "memory_optimization": values["gradient_checkpointing"],
    }


class Given(NamedTuple):
    """A value and the name under which the caller gave it."""

    name: str
    value: Any


class Switches:
    """Resolves the switches of what was given, in place: afterwards its rows say what the switches mean.

    report(parameter, text, **values) takes what does not go together; values that are parameters' names are shown as
    the caller wrote them.
    """

    def __init__(self, given: dict[str, Given], report: Report) -> None:
        self._given = given
        self._report = report

    def resolve(self, defaults: Mapping[str, Any]) -> str:
        """The method, taken from a surface's defaults when nothing says it."""
        self._memory()
        self._eight_bit_optimizer(defaults)
        return self._method(defaults)

    def _value(self, name: str) -> Any:
        return self._given[name].value if name in self._given else None

    def _name(self, parameter: str) -> str:
        return self._given[parameter].name

    def _memory(self) -> None:
        """The memory switch recomputes activations, which costs time and no quality."""
        if self._value("memory_optimization"):
            meant = Given(self._name("memory_optimization"), True)
            if self._given.setdefault("gradient_checkpointing", meant).value is False:
                other = self._name("gradient_checkpointing")
                self._report("memory_optimization", messages.CONTRADICTS, other=other, value="false")

    def _eight_bit_optimizer(self, defaults: Mapping[str, Any]) -> None:
        if self._value("use_8bit_optimizer"):
            chosen = self._value("optim") or defaults.get("optim", "adamw_torch")
            if chosen not in EIGHT_BIT_OPTIMIZERS:
                choices = tuple(EIGHT_BIT_OPTIMIZERS)
                self._report("use_8bit_optimizer", messages.NO_8BIT, value=chosen, choices=choices)
                return
            given = self._given.get("optim", self._given["use_8bit_optimizer"])
            self._given["optim"] = Given(given.name, EIGHT_BIT_OPTIMIZERS[chosen])

    def _method(self, defaults: Mapping[str, Any]) -> str:
        quantization = self._quantization()
        by, method = self._named_method()
        if quantization and method == "full":
            self._report(by, messages.FULL_QUANTIZED)
        elif quantization:
            method = "qlora"
        if method == "qlora" and self._value("use_qlora") is False:
            self._report("use_qlora", messages.CONTRADICTS, other=self._method_name(by), value=method)
        if method:
            self._given["method"] = Given(self._method_name(by), method)
        if quantization:
            self._given["bnb_4bit_quant_type"] = Given(self._quantized_by(), quantization)
        return method or str(defaults.get("method", "lora"))

    def _named_method(self) -> tuple[str, str]:
        """The method that is named, and the parameter that names it; what else names one must agree."""
        found: tuple[str, str] = ("", "")
        for parameter, method, agreeing in self._claims():
            if not found[1] or (found[1] == "lora" and method == "qlora"):
                found = (parameter, method)
            elif found[1] not in agreeing:
                self._report(parameter, messages.SAME, other=self._name(found[0]))
        return found

    def _claims(self) -> list[tuple[str, str, tuple[str, ...]]]:
        """Parameter, the method that it means, and the methods that it allows."""
        claims: list[tuple[str, str, tuple[str, ...]]] = []
        if method := self._value("method"):
            claims.append(("method", method, (method, "qlora") if method == "lora" else (method,)))
        for parameter, on in (("use_lora", True), ("peft_adapter", "lora")):
            if parameter in self._given:
                low_rank = self._value(parameter) == on
                claims.append((parameter, "lora" if low_rank else "full", ("lora", "qlora") if low_rank else ("full",)))
        if self._value("use_qlora"):
            claims.append(("use_qlora", "qlora", ("qlora",)))
        return claims

    def _quantization(self) -> str:
        """What the weights are quantized to; empty when they are not, or when qlora is left to its default."""
        four, eight, word = self._value("use_4bit"), self._value("use_8bit"), self._value("quantization")
        asked = self._value("bnb_4bit_quant_type")
        if word in HALF:
            self._given.setdefault(word, Given(self._name("quantization"), True))
            word = "none"
        wanted = word if word not in (None, "none") else ""
        for parameter, other, text in self._disagreements(four, eight, word, asked):
            self._report(parameter, text, other=self._name(other))
        if eight:
            return "int8"
        return wanted or ((asked or "nf4") if four else "")

    def _disagreements(self, four: Any, eight: Any, word: Any, asked: Any) -> list[tuple[str, str, Text]]:
        if four and eight:
            return [("use_8bit", "use_4bit", messages.EXCLUDES)]
        if word is not None and _disagree(four, word, asked or "nf4", FOUR_BIT):
            return [("quantization", "use_4bit", messages.SAME)]
        if word is not None and _disagree(eight, word, "int8", ("int8",)):
            return [("quantization", "use_8bit", messages.SAME)]
        if word in FOUR_BIT and asked not in (None, word):
            return [("quantization", "bnb_4bit_quant_type", messages.SAME)]
        return []

    def _method_name(self, by: str) -> str:
        return self._name(by) if by else self._quantized_by()

    def _quantized_by(self) -> str:
        on = ("use_8bit", "quantization", "use_4bit")
        return next(self._name(name) for name in on if self._value(name) not in (None, False, "none"))


def _disagree(switch: bool | None, word: str, on: str, family: tuple[str, ...]) -> bool:
    if switch is None:
        return False
    return word != on if switch else word in family
