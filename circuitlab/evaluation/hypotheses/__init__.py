"""The five hypothesis tests of Shi et al. 2024 (arXiv:2410.13032), and the battery of all of them."""
