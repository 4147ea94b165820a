"""Every query, a module for each kind of thing that is stored."""
