"""What docs/ claims, to be run again."""
