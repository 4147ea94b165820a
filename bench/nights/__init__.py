"""What the mornings bring, by simulation."""
