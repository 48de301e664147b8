"""Which experts fired: pure counts, and the hooks that observe a running engine. No metric is computed here."""
