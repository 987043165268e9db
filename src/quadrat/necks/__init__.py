"""Parts that turn feature maps into better feature maps, under the backbones' contract."""
