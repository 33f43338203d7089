"""The five models of Chung et al. 2015 (section 4 and table 1), on :mod:`.speech` and :mod:`.handwriting`.

RNN-Gauss and RNN-GMM have no z; VRNN-I-Gauss has the prior N(0, 1) whatever h is. All cost as much as VRNN-Gauss: as
many multiplications for a time step, to within what a width can say. They are trained by the package's own trainer, and
the epoch that validates best is measured on held-out sequences.
"""
