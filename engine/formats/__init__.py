"""Files: model folders, safetensors, GGUF, Hugging Face; importing and exporting."""
