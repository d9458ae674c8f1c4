"""The base models that the platform offers by name."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CatalogueEntry:
    """A base model offered by name.

    hub_id is where its files come from; vram_gb is the video memory of LoRA training in GB, 0 when unknown.
    """

    id: str
    name: str
    family: str
    parameters: str
    description: str
    vram_gb: float = 0.0
    modality: str = "language_model"
    hub_id: str = ""


CATALOGUE = (
    CatalogueEntry("meta-llama/Llama-2-7b-hf", "LLaMA 2-7B", "llama", "7B", "Base version", 16),
    CatalogueEntry("meta-llama/Llama-2-13b-hf", "LLaMA 2-13B", "llama", "13B", "Medium size", 24),
    CatalogueEntry("meta-llama/Llama-2-70b-hf", "LLaMA 2-70B", "llama", "70B", "Large", 140),
    CatalogueEntry("meta-llama/Meta-Llama-3-8B", "LLaMA 3-8B", "llama", "8B", "Newer generation", 16),
    CatalogueEntry("meta-llama/Meta-Llama-3-70B", "LLaMA 3-70B", "llama", "70B", "Newer generation, large", 140),
    CatalogueEntry("THUDM/chatglm2-6b", "ChatGLM2-6B", "chatglm", "6B", "Tuned for Chinese", 14),
    CatalogueEntry("THUDM/chatglm3-6b", "ChatGLM3-6B", "chatglm", "6B", "More functions", 14),
    CatalogueEntry("zai-org/glm-4-9b-hf", "GLM-4-9B", "glm", "9B", "Newest version", 20),
    CatalogueEntry("Qwen/Qwen1.5-7B", "Qwen1.5-7B", "qwen2", "7B", "Multilingual", 16),
    CatalogueEntry("Qwen/Qwen1.5-14B", "Qwen1.5-14B", "qwen2", "14B", "Multilingual", 24),
    CatalogueEntry("Qwen/Qwen2-7B", "Qwen2-7B", "qwen2", "7B", "Second generation", 16),
    CatalogueEntry("Qwen/Qwen2-72B", "Qwen2-72B", "qwen2", "72B", "Second generation, large", 144),
    CatalogueEntry("llama-2-7b", "Llama 2 7B", "llama", "7B", "General purpose", 16, hub_id="meta-llama/Llama-2-7b-hf"),
    CatalogueEntry(
        "llama-2-13b", "Llama 2 13B", "llama", "13B", "General purpose", 32, hub_id="meta-llama/Llama-2-13b-hf"
    ),
    CatalogueEntry(
        "mistral-7b", "Mistral 7B", "mistral", "7B", "General purpose", 16, hub_id="mistralai/Mistral-7B-v0.1"
    ),
    CatalogueEntry("phi-2", "Phi-2", "phi", "2.7B", "Small and quick", 8, hub_id="microsoft/phi-2"),
    CatalogueEntry("qwen-7b", "Qwen 7B", "qwen2", "7B", "Chinese and English", 16, hub_id="Qwen/Qwen1.5-7B"),
    CatalogueEntry(
        "resnet50", "ResNet-50", "resnet", "25M", "Good balance of speed and accuracy", 4, "image_classifier"
    ),
    CatalogueEntry(
        "efficientnet-b0", "EfficientNet-B0", "efficientnet", "5M", "Small and quick", 4, "image_classifier"
    ),
    CatalogueEntry("yolov8n", "YOLOv8n", "yolov8", "3M", "Smallest and quickest", 8, "object_detector"),
    CatalogueEntry("yolov8s", "YOLOv8s", "yolov8", "11M", "Small", 8, "object_detector"),
    CatalogueEntry(
        "sd-v1-5",
        "Stable Diffusion 1.5",
        "stable-diffusion",
        "860M",
        "Text to image, 512 px",
        8,
        "text_to_image",
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
    ),
)
BY_ID = {entry.id.lower(): entry for entry in CATALOGUE}


def hub_id(name: str) -> str:
    """The hub id behind a catalogue name, or the name itself."""
    entry = BY_ID.get(name.lower())
    return entry.hub_id or entry.id if entry else name
