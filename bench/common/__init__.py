"""What the benches share: processes, models, peers, and how results are printed and kept."""
