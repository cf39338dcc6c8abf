"""The figure of each analysis."""
