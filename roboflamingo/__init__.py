"""Vision-language models fine-tuned into robot policies."""

__version__ = "0.1.0"
