"""Weights: conversion of the original's checkpoints, strict loading, memory requirements, downloads."""
