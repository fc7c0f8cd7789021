"""The stages over the nodes of a Ray cluster; results are receipts and result files on storage that all of them see."""
