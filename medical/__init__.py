"""3-D CT volumes and reports. Import as `mm.medical`."""
