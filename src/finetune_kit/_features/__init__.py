"""The output of the frozen part, computed once and kept."""
