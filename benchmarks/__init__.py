"""How fast circuitlab is, and how exact: ratios to other ways in one process, and differences to independent ways.

Not part of the installed package. `make bench` (`python -m benchmarks`) writes docs/performance.md, `make parity`
(`python -m benchmarks.parity`) writes docs/parity.md.
"""
