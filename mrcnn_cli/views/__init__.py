"""Pictures for people: what was detected, and how training went."""
