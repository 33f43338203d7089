"""``python -m bench.papers``: the chorales of Maddison et al. 2017, learnt with three bounds, and what each came to.

The data is JSB_Chorales.mat (Boulanger-Lewandowski et al. 2012, as Bai et al. 2018 distribute it): 229, 76 and 77 piano
rolls of 88 pitches. It is no part of this repository: name the file with ``--data`` or in ``VRNN_FAST_JSB``.

The model is that of "Filtering Variational Objectives": every network has one hidden layer of 32 and a linear output,
an LSTM of 32, 32 latents, a residual posterior, standard deviations softplus(raw + 0.5), and the decoder's bias starts
at the logits of the training mean. The features of x and z end with their activation here: a linear output behind it
is a factor of the weights that read it, which can be as much without it. The first state is what the cell makes of a
silent frame and no z.

A run trains with one bound and four particles, keeps the running mean of the parameters that validates best, and
measures it with 128 particles. The test part is read once, after that.
"""
