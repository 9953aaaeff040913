"""Secure aggregation: the server learns the sum of a cohort's updates and no single one.

SecAgg+ (Bell et al., ePrint 2020/704) after Bonawitz et al. (ePrint 2017/281), for a server that follows the
protocol.
"""
