"""The kingdom: a synthetic language in which every request has an exact meaning and an exact right answer.

Lexicon (words, harm rule) -> language (tables, splits, requests) and styles -> skills -> corpora, tokenizer. Spells,
hexes, blights and stolen crowns stand in for harm, so that every prompt and completion can be printed.
"""
