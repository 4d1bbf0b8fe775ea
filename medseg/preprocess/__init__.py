"""Native scan to network grid and back."""
