"""The documents' advice as data, in both languages; forms, errors and pages are drawn from it."""

from dataclasses import dataclass

from parameterkit.messages import Text

# A cell is a text in both languages, or one that needs no translation.
Cell = Text | str


@dataclass(frozen=True, slots=True)
class Table:
    """A table with a caption; note says what it is about."""

    title: Text
    columns: tuple[Cell, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: Text | None = None


@dataclass(frozen=True, slots=True)
class Advice:
    """What to do, in order; sign says when it applies."""

    title: Text
    items: tuple[Text, ...]
    sign: Text | None = None


_MODEL = Text("Model", "模型")
_PARAMETERS = Text("Parameters", "参数量")
_MEMORY = Text("Video memory", "显存需求")

TYPES = Table(
    Text("Types of training", "训练类型"),
    (
        Text("Type", "训练类型"),
        Text("Use", "用途"),
        Text("Typical time", "典型训练时间"),
        Text("Minimum video memory", "最低显存"),
        Text("Recommended", "推荐显存"),
    ),
    (
        (
            Text("Image classifier", "图像分类器"),
            Text("categorise images", "图像分类"),
            Text("1-4 hours", "1-4 小时"),
            "4 GB",
            "8 GB+",
        ),
        (
            Text("Object detector", "目标检测器"),
            Text("find objects in images", "检测图像中的物体"),
            Text("4-12 hours", "4-12 小时"),
            "8 GB",
            "12 GB+",
        ),
        (
            Text("Text-to-image LoRA", "文生图 LoRA"),
            Text("customise image generation", "自定义图像生成"),
            Text("2-8 hours", "2-8 小时"),
            "8 GB",
            "12 GB+",
        ),
        (
            Text("Language model, LoRA (7B)", "大语言模型 LoRA (7B)"),
            Text("fine-tune language models", "微调大语言模型"),
            Text("4-24 hours", "4-24 小时"),
            "16 GB",
            "24 GB+",
        ),
        (
            Text("Language model, QLoRA (7B)", "大语言模型 QLoRA (7B)"),
            Text("fine-tune language models", "微调大语言模型"),
            Text("4-24 hours", "4-24 小时"),
            "8 GB",
            "12 GB+",
        ),
    ),
)
MEMORY_BY_METHOD = Table(
    Text("Video memory by method", "各方法的显存需求"),
    (_MODEL, Text("Full", "全量微调"), "LoRA", "QLoRA"),
    (
        ("7B", "28 GB+", "16 GB", "6 GB"),
        ("13B", "52 GB+", "32 GB", "10 GB"),
        ("70B", "280 GB+", "160 GB", "48 GB"),
    ),
)
MEMORY_BY_SIZE = Table(
    Text("Hardware by model size", "硬件推荐"),
    (
        Text("Model size", "模型规模"),
        Text("Video memory (LoRA)", "显存需求（LoRA）"),
        Text("Video memory (full)", "显存需求（全量）"),
    ),
    (
        (Text("below 1B", "1B 以下"), "4 GB", "16 GB"),
        ("1-3B", "6 GB", "24 GB"),
        ("3-7B", "8 GB", "40 GB"),
        ("7-14B", "12 GB", "80 GB"),
    ),
    Text(
        "LoRA needs at least 4 GB of video memory, better 8 GB or more; checkpoints and logs need disk space.",
        "LoRA 微调最低 4GB 显存，建议 8GB 以上；检查点和日志需要足够的存储空间。",
    ),
)
MODELS = Table(
    Text("Supported models", "支持的模型"),
    (_MODEL, _PARAMETERS, _MEMORY, Text("Remark", "特点")),
    (
        ("LLaMA 2-7B", "7B", "~16 GB", Text("base version", "基础版本")),
        ("LLaMA 2-13B", "13B", "~24 GB", Text("medium size", "中等规模")),
        ("LLaMA 2-70B", "70B", "~140 GB", Text("large", "大规模")),
        ("LLaMA 3-8B", "8B", "~16 GB", Text("new generation", "新一代")),
        ("LLaMA 3-70B", "70B", "~140 GB", Text("new generation, large", "新一代大模型")),
        ("ChatGLM2-6B", "6B", "~14 GB", Text("strong in Chinese", "中文优化")),
        ("ChatGLM3-6B", "6B", "~14 GB", Text("more abilities", "功能增强")),
        ("GLM-4-9B", "9B", "~20 GB", Text("newest version", "最新版本")),
        ("Qwen1.5-7B", "7B", "~16 GB", Text("multilingual", "多语言")),
        ("Qwen1.5-14B", "14B", "~24 GB", Text("medium size", "中等规模")),
        ("Qwen2-7B", "7B", "~16 GB", Text("second generation", "第二代")),
        ("Qwen2-72B", "72B", "~144 GB", Text("large", "大规模")),
    ),
    Text(
        "LoRA, about. The estimate before a start computes the need of your own set-up.",
        "LoRA 微调的大致需求；提交前的资源估算会按您的配置计算。",
    ),
)
METHODS = Table(
    Text("Choosing a method", "如何选择微调方法"),
    (Text("Method", "方法"), Text("When", "适用场景")),
    (
        (Text("full", "全量微调（full）"), Text("ample resources, the best result", "有充足资源，追求最佳效果")),
        ("LoRA", Text("recommended: few resources, good results", "推荐方法，资源需求低，效果好")),
        (
            "QLoRA",
            Text(
                "below 16 GB of video memory, models of 13B and more on consumer GPUs, small cloud machines",
                "显存有限（< 16GB）、在消费级硬件上训练 13B+ 模型、内存受限的云实例",
            ),
        ),
    ),
)
HYPERPARAMETERS = Table(
    Text("LoRA hyperparameters", "LoRA 超参数指南"),
    (Text("Parameter", "参数"), Text("Low", "低值"), Text("High", "高值"), Text("Recommended", "推荐用途")),
    (
        ("`lora_r`", "4-8", "64-128", Text("usually 8-16, QLoRA 64", "标准：8-16，QLoRA：64")),
        ("`lora_alpha`", "8-16", "32-64", Text("usually twice r", "通常是 r 的 2 倍")),
        ("`lora_dropout`", "0.0", "0.1", Text("small datasets: 0.05-0.1", "小数据集：0.05-0.1")),
        ("`learning_rate`", "1e-5", "5e-4", Text("full: 5e-5, LoRA: 1e-4", "完整 FT：5e-5，LoRA：1e-4")),
    ),
)
OTHER_MODALITIES = Table(
    Text("Image classifiers and object detectors", "图像分类器与目标检测器"),
    (Text("Parameter", "参数"), Text("Image classifier", "图像分类器"), Text("Object detector", "目标检测器")),
    (
        (Text("base model", "基础模型"), "ResNet-50", "YOLOv8n"),
        (Text("epochs", "轮次"), "10-20", "50-100"),
        (Text("batch size", "批次大小"), "8-32", "16"),
        (
            Text("learning rate", "学习率"),
            Text("1e-4 to 1e-3, start with 1e-4", "1e-4 到 1e-3，建议从 1e-4 开始"),
            Text("the model's own", "模型默认值"),
        ),
        (Text("image size", "图像尺寸"), "224x224", "640"),
    ),
)
OPTIMIZERS = Table(
    Text("Optimizers", "优化器"),
    (Text("Optimizer", "优化器"), Text("Remark", "说明")),
    (
        ("`adamw_torch`", Text("PyTorch's AdamW, the default", "PyTorch 默认 AdamW（默认）")),
        ("`adamw_torch_fused`", Text("fused AdamW, faster", "融合 AdamW（更快）")),
        ("`adamw_8bit`, `adamw_bnb_8bit`", Text("AdamW with 8-bit state, less memory", "8 位 AdamW（内存高效）")),
        (
            "`paged_adamw_32bit`, `paged_adamw_8bit`",
            Text(
                "AdamW whose state moves to main memory when the GPU is full; without a GPU it stays where it is",
                "显存不足时状态可换出到内存的 AdamW；没有 GPU 时不分页",
            ),
        ),
        ("`adafactor`", Text("little memory", "Adafactor（内存高效）")),
        ("`lomo`", Text("updates while gradients are computed: little memory", "LOMO（低内存优化）")),
        ("`galore_adamw`, `galore_adamw_8bit`", Text("gradients projected to low rank", "GaLore AdamW 及其 8 位版本")),
        ("`grokadamw`", Text("amplifies slowly varying gradients", "Grok AdamW")),
        ("`stableadamw`", Text("clips its own updates", "稳定 AdamW")),
        ("`schedule_free_radamw`", Text("needs no schedule", "无调度 RAdamW")),
        ("`sgd`", Text("stochastic gradient descent", "随机梯度下降")),
        ("`adagrad`, `rmsprop`", Text("classic adaptive methods", "传统自适应优化器")),
    ),
)
SCHEDULERS = Table(
    Text("Learning rate schedulers", "学习率调度器"),
    (Text("Scheduler", "调度器"), Text("Learning rate after warm-up", "预热之后的学习率")),
    (
        ("`linear`", Text("falls linearly to 0", "线性衰减")),
        ("`cosine`", Text("falls along a cosine to 0", "余弦衰减")),
        ("`cosine_with_restarts`", Text("cosines, each starting at the peak", "带重启的余弦")),
        ("`polynomial`", Text("falls along a polynomial", "多项式衰减")),
        ("`constant`", Text("stays, without warm-up", "恒定学习率（无预热）")),
        ("`constant_with_warmup`", Text("stays", "带预热的恒定")),
        ("`inverse_sqrt`", Text("falls with the square root of the steps", "逆平方根衰减")),
        ("`reduce_lr_on_plateau`", Text("falls when evaluations no longer improve", "平台期降低")),
        ("`cosine_with_min_lr`", Text("a cosine that ends at `min_lr_rate`", "余弦衰减到最小学习率 `min_lr_rate`")),
        ("`warmup_stable_decay`", Text("stays, then falls at the end", "预热-稳定-衰减")),
    ),
)
MODULES = Table(
    Text("LoRA target modules", "LoRA 目标模块"),
    (Text("Modules", "模块"), Text("Where", "位置"), Text("Effect", "效果")),
    (
        (
            "`q_proj`, `k_proj`, `v_proj`, `o_proj`",
            Text("attention", "Transformer 注意力"),
            Text("little memory, enough in most cases", "内存高效，大多数情况下足够"),
        ),
        (
            "`gate_proj`, `up_proj`, `down_proj`",
            "MLP",
            Text("with attention: better results, more memory", "与注意力一起：更好的性能，更多内存"),
        ),
        (
            "`embed_tokens`, `lm_head`",
            Text("embeddings", "嵌入"),
            Text("for new words; much more memory", "用于新词；占用更多内存"),
        ),
    ),
)
# What the choices of parameters mean.
CHOICES = (OPTIMIZERS, SCHEDULERS, MODULES)
TABLES = (TYPES, MEMORY_BY_METHOD, MEMORY_BY_SIZE, MODELS, METHODS, HYPERPARAMETERS, OTHER_MODALITIES)

OUT_OF_MEMORY = Advice(
    Text("Out of memory", "显存不足 (OOM)"),
    (
        Text(
            "reduce the batch size (per_device_train_batch_size); raise gradient_accumulation_steps to make up for it",
            "减小批次大小 (per_device_train_batch_size)，并增加 gradient_accumulation_steps",
        ),
        Text("enable gradient_checkpointing", "启用梯度检查点 (gradient_checkpointing)"),
        Text(
            "use QLoRA instead of LoRA, or LoRA instead of full training", "使用 QLoRA 代替 LoRA，或 LoRA 代替全量微调"
        ),
        Text("reduce the sequence length (max_seq_length)", "减小序列长度 (max_seq_length)"),
        Text("use a smaller base model", "使用较小的基础模型"),
        Text(
            "share the model among several GPUs (cuda_visible_devices, parallelism fully_sharded)",
            "多卡分担模型（cuda_visible_devices，parallelism 设为 fully_sharded）",
        ),
    ),
)
DIVERGED = Advice(
    Text("Loss is not a number or explodes", "损失变为 NaN 或爆炸"),
    (
        Text("lower learning_rate", "降低 learning_rate"),
        Text("lower max_grad_norm or add warmup_steps", "降低 max_grad_norm 或增加 warmup_steps"),
        Text("use bf16 or float32 instead of fp16", "使用 bf16 或 float32 代替 fp16"),
        Text("look for damaged rows in the dataset", "检查数据集中是否有损坏的样本"),
    ),
)
LOSS_NOT_FALLING = Advice(
    Text("Loss does not fall", "训练损失不下降"),
    (
        Text("learning_rate may be too low: raise it", "学习率太低：增加"),
        Text("learning_rate may be too high: lower it", "学习率太高：降低"),
        Text("the data may be of bad quality: clean the dataset", "数据质量差：清洗数据集"),
        Text(
            "the data may be prepared wrongly: look at the dataset's report and its preview of labels",
            "数据预处理错误：查看数据集报告及标签预览",
        ),
    ),
)
OVERFITTING = Advice(
    Text("Overfitting", "过拟合"),
    (
        Text("add more training data", "增加训练数据"),
        Text("use data augmentation", "使用数据增强"),
        Text("increase dropout (lora_dropout)", "增加 Dropout (lora_dropout)"),
        Text("reduce the model's complexity (lora_r, or a smaller base model)", "降低模型复杂度 (lora_r 或更小的模型)"),
        Text("use early stopping (early_stopping_patience)", "使用早停 (early_stopping_patience)"),
    ),
    Text("The training loss falls while the validation loss rises.", "训练损失下降但验证损失上升。"),
)
SLOW = Advice(
    Text("Slow training", "训练缓慢"),
    (
        Text("train on a GPU", "启用 GPU 加速"),
        Text("use mixed precision (bf16, or fp16 on a GPU)", "使用混合精度（bf16，或 GPU 上的 fp16）"),
        Text("keep the dataset on an SSD", "使用 SSD 存储数据集"),
    ),
)
CONVERGENCE = Advice(
    Text("Has the training converged?", "如何判断训练是否收敛"),
    (
        Text("the loss falls and settles", "loss 曲线下降并趋于稳定"),
        Text("the validation metrics agree", "查看验证集性能指标"),
        Text("it does not overfit", "检查是否发生过拟合"),
        Text("early stopping ends it in time", "合理设置早停策略"),
    ),
)
FAILED = Advice(
    Text("A task failed", "任务失败排查"),
    (
        Text("read the task's log and its error", "查看任务日志了解错误信息"),
        Text(
            "check the dataset's format (its report lists every problem)",
            "检查数据集格式是否正确（数据集报告会列出问题）",
        ),
        Text("check that the model's path exists", "验证模型路径是否存在"),
        Text("check that the GPU has room", "确认 GPU 资源是否充足"),
        Text("check the parameters", "检查训练参数配置"),
    ),
)
REMEDIES = (OUT_OF_MEMORY, DIVERGED, LOSS_NOT_FALLING, OVERFITTING, SLOW, CONVERGENCE, FAILED)

DATA = Advice(
    Text("Data", "数据"),
    (
        Text(
            "quality before quantity: at least 1000 good samples, accurate and varied",
            "质量优先于数量：至少 1000 条准确、多样的样本",
        ),
        Text("remove duplicates, errors and low-quality samples", "移除重复、错误和低质量样本"),
        Text("balance classes; augment small datasets", "平衡类别；对小数据集使用数据增强"),
        Text("keep 10-20 % for validation; a common split is 80/15/5", "保留 10-20% 用于验证；常用划分 80/15/5"),
    ),
)
TRAINING = Advice(
    Text("Training", "训练"),
    (
        Text("start with a subset (max_samples) to verify the set-up", "先在子集上训练以验证设置（max_samples）"),
        Text("watch the validation loss", "监控验证损失"),
        Text("use warm-up and cosine decay", "使用预热和余弦衰减"),
        Text(
            "LoRA needs few resources and keeps the quality; several GPUs train faster and carry larger models",
            "LoRA 显著降低资源需求并保持良好效果；多卡并行提高速度、支持更大模型",
        ),
        Text("save checkpoints regularly; a training resumes from them", "定期保存检查点以便恢复训练"),
        Text("accumulate gradients to simulate larger batches", "用梯度累积模拟更大的批次"),
        Text(
            "mixed precision is faster; gradient checkpointing trades time for memory",
            "混合精度加速训练；梯度检查点用计算换内存",
        ),
    ),
)
EVALUATION = Advice(
    Text("Evaluation", "评估"),
    (
        Text("judge the final model on a test set that it has not seen", "在未见过的测试集上最终评估"),
        Text("use several metrics, and compare with the base model", "使用多个指标，并与基线模型对比"),
        Text("look at outputs by hand", "人工检查输出"),
    ),
)
PRACTICES = (DATA, TRAINING, EVALUATION)

LINKS = (
    (Text("Hugging Face PEFT documentation", "Hugging Face PEFT 文档"), "https://huggingface.co/docs/peft"),
    (Text("LoRA paper", "LoRA 论文"), "https://arxiv.org/abs/2106.09685"),
    (Text("QLoRA paper", "QLoRA 论文"), "https://arxiv.org/abs/2305.14314"),
    (Text("YOLOv8 documentation", "YOLOv8 文档"), "https://docs.ultralytics.com"),
)
