"""What happens when the device fails."""
