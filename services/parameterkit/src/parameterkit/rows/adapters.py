"""Low-rank adapters and quantization."""

from functools import partial

from parameterkit.parameter import Parameter

LOW_RANK = ("lora", "qlora")

_lora = partial(Parameter, category="lora", methods=LOW_RANK)
_method = partial(Parameter, category="lora", path="language_model.method", switch=True)
_quantization = partial(Parameter, category="quantization", fold="advanced", methods=("qlora",))
_quantize = partial(
    Parameter, category="quantization", fold="advanced", path="language_model.quantization.type", switch=True
)

ROWS = (
    Parameter(
        name="method",
        path="language_model.method",
        category="lora",
        default="lora",
        label_en="Method",
        label_zh="微调方法",
        description_zh="微调方法：全量微调（full）、LoRA 或 QLoRA",
        advice_en="LoRA is recommended; QLoRA when memory is short; full with ample resources, for the best result.",
        advice_zh="推荐 LoRA；显存受限时用 QLoRA；资源充足、追求最佳效果时用全量微调。",
    ),
    _method(
        name="use_lora",
        kind="boolean",
        label_en="Use LoRA fine-tuning",
        label_zh="使用LoRA微调",
        meaning="Train a low-rank adapter instead of every weight.",
        description_zh="是否启用 LoRA 高效微调",
    ),
    _method(
        name="use_qlora",
        kind="boolean",
        aliases=("qlora",),
        label_en="Use QLoRA fine-tuning",
        label_zh="使用QLoRA微调",
        meaning="Train a low-rank adapter on quantized weights.",
        description_zh="在量化的基础模型上训练 LoRA，大幅降低显存占用",
        advice_en="Below 16 GB of video memory, and for 13B and larger models on consumer GPUs.",
        advice_zh="显存小于 16GB，或在消费级显卡上训练 13B 及以上模型时使用。",
    ),
    _method(
        name="peft_adapter",
        options=("none", "lora"),
        label_en="Adapter",
        label_zh="适配器",
        meaning="Adapter to train; none trains every weight.",
        description_zh="要训练的适配器；none 表示全量微调",
    ),
    _lora(
        name="lora_r",
        path="language_model.lora.r",
        default=8,
        aliases=("lora_rank",),
        label_en="LoRA r",
        label_zh="LoRA的r参数",
        description_zh="LoRA 秩，影响参数量",
        advice_en="8-64: usually 8-16, with QLoRA 64.",
        advice_zh="8-64：标准 8-16，QLoRA 用 64。",
    ),
    _lora(
        name="lora_alpha",
        path="language_model.lora.alpha",
        default=16,
        label_en="LoRA alpha",
        label_zh="LoRA的alpha参数",
        description_zh="LoRA 缩放因子",
        advice_en="16-128; usually twice r.",
        advice_zh="16-128；通常是 r 的 2 倍。",
    ),
    _lora(
        name="lora_dropout",
        path="language_model.lora.dropout",
        default=0.05,
        label_en="LoRA dropout",
        label_zh="LoRA的dropout",
        description_zh="LoRA 层的 Dropout 比例（0-1）",
        advice_en="0.05-0.1, above all with small datasets.",
        advice_zh="0.05-0.1，小数据集尤其需要。",
    ),
    _lora(
        name="lora_target_modules",
        path="language_model.lora.target_modules",
        aliases=("target_modules",),
        label_en="LoRA target modules",
        label_zh="LoRA目标模块",
        description_zh="应用 LoRA 的模型模块；留空则为每个 Transformer 块的所有线性层",
        advice_en="q_proj, v_proj suffice in most cases; k_proj, o_proj, gate_proj, up_proj and down_proj learn more "
        "and need more memory.",
        advice_zh="q_proj、v_proj 大多数情况下足够；"
        "加上 k_proj、o_proj、gate_proj、up_proj、down_proj 效果更好，占用更多显存。",
    ),
    _lora(
        name="lora_bias",
        path="language_model.lora.bias",
        default="none",
        label_en="LoRA bias",
        label_zh="LoRA偏置",
        description_zh="训练哪些偏置：none 不训练，all 全部，lora_only 仅 LoRA 层",
        advice_en="none.",
        advice_zh="none。",
        fold="advanced",
    ),
    _lora(
        name="merge_after_training",
        path="language_model.merge_after_training",
        default=False,
        fold="save",
        label_en="Merge LoRA weights after training",
        label_zh="训练后合并LoRA权重",
        description_zh="训练完成后是否将 LoRA 合并到基础模型",
    ),
    _quantize(
        name="quantization",
        options=("none", "nf4", "fp4", "int4", "int8"),
        label_en="Quantization",
        label_zh="量化类型",
        meaning="What the frozen weights are quantized to; anything but none means QLoRA.",
        description_zh="冻结权重的量化类型；除 none 外都表示 QLoRA",
        advice_en="nf4.",
        advice_zh="nf4。",
    ),
    _quantize(
        name="use_4bit",
        kind="boolean",
        aliases=("load_in_4bit",),
        label_en="4-bit quantization",
        label_zh="4位量化",
        meaning="QLoRA with 4-bit weights, nf4 unless bnb_4bit_quant_type says otherwise.",
        description_zh="使用 4 位量化的 QLoRA，默认 nf4",
    ),
    _quantize(
        name="use_8bit",
        kind="boolean",
        aliases=("load_in_8bit",),
        label_en="8-bit quantization",
        label_zh="8位量化",
        meaning="QLoRA with int8 weights.",
        description_zh="使用 8 位量化（int8）的 QLoRA",
    ),
    _quantization(
        name="bnb_4bit_quant_type",
        path="language_model.quantization.type",
        default="nf4",
        aliases=("quantization_type",),
        label_en="Quantized type",
        label_zh="量化数据类型",
        description_zh="量化数据类型：nf4、fp4、int4 或 int8",
        advice_en="nf4.",
        advice_zh="nf4。",
    ),
    _quantization(
        name="bnb_4bit_compute_dtype",
        path="language_model.quantization.compute_dtype",
        default="bfloat16",
        aliases=("quantization_compute_dtype",),
        label_en="Compute type",
        label_zh="计算数据类型",
        description_zh="矩阵乘法的数据类型：float32、float16 或 bfloat16",
        advice_en="bfloat16 on Ampere or newer, else float16.",
        advice_zh="Ampere 及以上架构用 bfloat16，否则用 float16。",
    ),
    _quantization(
        name="bnb_4bit_use_double_quant",
        path="language_model.quantization.double_quant",
        default=False,
        aliases=("use_nested_quant", "quantization_double_quant"),
        label_en="Double quantization",
        label_zh="双重量化",
        description_zh="对量化常数再次量化",
        advice_en="Saves a little more memory.",
        advice_zh="可再节省少量显存。",
    ),
)
