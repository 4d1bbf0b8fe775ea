"""The nouns: frozen records that flow between modules."""
