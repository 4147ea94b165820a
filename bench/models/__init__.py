"""What a step takes on the models that an owner may choose (python -m bench.models)."""
