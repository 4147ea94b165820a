"""Commands about models, adapters and what they write."""
