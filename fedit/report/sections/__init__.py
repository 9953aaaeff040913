"""Sections of reports, each made from plain values, so that reports on one run and on many share them."""
