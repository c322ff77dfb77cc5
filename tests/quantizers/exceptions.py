"""Which law does not hold for which member, and why; docs/laws.md shows this table."""

DRAWS = "draws a random number for each row in training, so a row that is left out changes the draws of the others"
BLEND = "shows the decoder a blend of codes in training; holds with a hard draw or another estimator"
DIRECTION = "compares directions, which a far code has like any other; holds for codes that are not finite"
DOT_PRODUCT = "compares dot products, which are as large as a far code is far"
SMALL = "has fewer codes than the symbols, or parts of them that share a codebook, that the law draws"
GREEDY = "each level takes its best, and another sum of codes may lie as near"

SQUASHED = (
    "tanh pulls the outer levels inward a second time; holds for levels of 3 and 5, with "
    'bound="clamp", and for preimage(codes) in place of decode(codes)'
)

EXCEPTIONS: dict[str, dict[str, str]] = {
    "round trip": {
        "finite-scalar": SQUASHED,
        "finite-scalar-paper": SQUASHED,
        "index-plain": "a longer code has the larger dot product; holds with cosine=True",
        "residual": GREEDY,
        "residual-shared": GREEDY,
        "residual-sizes": GREEDY,
        "residual-dropout": GREEDY,
        "residual-dropout-shared": GREEDY,
        "residual-beam": GREEDY,
        "residual-of-product": GREEDY,
        "product-of-residual": GREEDY,
        "projected-residual": GREEDY,
        "implicit": GREEDY,
        "joined-residual": GREEDY,
        "projected-untied": "the way in is not the inverse of the way out; holds with tied=True",
    },
    "one value": {
        "mixture-gumbel": BLEND,
        "mixture-paper": BLEND,
        "stochastic-paper": BLEND,
        "gaussian-codes": "shows the decoder a draw of the VAE in training; holds with hard=True",
        "finite-scalar-noise": "shows the decoder noise in place of rounding in some of the training forwards",
    },
    "gradients": {
        "finite-scalar-clamp": "no gradient passes the clamp where a latent lies outside [-1, 1]",
    },
    "far codes": {
        "vector-cosine": DIRECTION,
        "vector-huh": DIRECTION,
        "random-projection": DIRECTION,
        "index-backpropagation": DOT_PRODUCT,
        "index-plain": DOT_PRODUCT,
        "gaussian-hard": "the codes are fixed draws of a normal distribution",
        "gaussian-groups": "the codes are fixed draws of a normal distribution",
    },
    "symbols": {
        "product-shared": SMALL,
        "residual-of-product": SMALL,
        "joined-residual": SMALL,
        "joined-product": SMALL,
        "joined-nested": SMALL,
        "mixture-fixed": "a fixed sigma far above the distances of symbols lets the M-step's prices decide",
    },
    "masks": {
        "vector-diveq": DRAWS,
        "vector-gumbel": DRAWS,
        "mixture-gumbel": DRAWS,
        "mixture-gumbel-hard": DRAWS,
        "mixture-paper": DRAWS,
        "stochastic": DRAWS,
        "stochastic-paper": DRAWS,
        "finite-scalar-noise": DRAWS,
        "gaussian-codes": DRAWS,
        "gaussian": DRAWS,
        "gaussian-projected": DRAWS,
    },
}
