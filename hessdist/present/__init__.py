"""What figures, tables and the page have in common."""
