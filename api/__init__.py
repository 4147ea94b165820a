"""What other programs see: routes, access, errors."""
