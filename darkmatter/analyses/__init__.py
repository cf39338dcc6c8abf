"""The paper's analyses beyond the split itself: each is one function from a source to a frozen result."""
