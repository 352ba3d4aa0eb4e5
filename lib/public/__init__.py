"""What only real checkpoints need: public data sets, and the `World` made of them.

Kingdom results do not depend on anything here, and a test sees to it that no kingdom run imports it.
"""
