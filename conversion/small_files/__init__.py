"""What a repo holds beside its weights: configuration, tokenizer, model card, code, notice."""
