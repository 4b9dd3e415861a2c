//! Provides what both processes must read alike: tokenizer files, chat templates, corpora, windows and target masks.
