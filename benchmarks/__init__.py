"""How fast the study trains, compared with others. Not part of the installed package."""
