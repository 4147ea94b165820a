"""The streamed model: drop-in replacements for transformers' modules, whose weights are dense only while they run."""
