"""Everything that touches a disk; the only layer that knows file formats."""
