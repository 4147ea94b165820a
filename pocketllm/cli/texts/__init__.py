"""Commands about the owner's texts."""
