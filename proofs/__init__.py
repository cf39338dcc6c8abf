"""The theorems, derived in the pages and attacked by the tests beside them."""
