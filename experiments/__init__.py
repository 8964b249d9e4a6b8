"""One module per question that a paper asks; `claims.json` lists the claims, `claims` prints how each one fared."""
