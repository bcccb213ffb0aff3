# SPDX-License-Identifier: Apache-2.0
"""Steady decoding: steps in which every row of the last step goes on by one token.

Most steps of a server are of this kind: nobody comes, nobody ends, and every request (or every lane
of a group) computes the token that it sampled before. What a general step finds out anew for each
row is then known from the last one. `scheduling` keeps the scheduler's part of it, `worker` the
worker's. Both fall back to the general step whenever anything is different, and neither changes
what is emitted: tests compare every engine with and without.
"""
