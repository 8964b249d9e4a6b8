"""Are features interpretable, without people who rate? Against the variables that a grammar's text is made of."""
