"""The model server: one resident base, many LoRA adapters, vLLM's wire dialect. No Django."""
