"""How much of a pre-trained image network to freeze, and what each choice costs."""

__version__ = "0.1.0"
