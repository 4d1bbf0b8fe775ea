"""Numbers about two label maps, in mm and ml."""
